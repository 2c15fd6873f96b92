-- What did people write, and what had the models said?
SELECT
    human.text AS caption,
    model.name AS model,
    machine.text AS models_caption,
    round(CAST(machine.confidence AS numeric), 2) AS models_confidence,
    (SELECT min(uri) FROM location WHERE location.content_hash = image.content_hash) AS uri
FROM image
JOIN caption AS human ON human.id = image.caption_id AND human.source = 'human'
JOIN caption AS machine ON machine.content_hash = image.content_hash AND machine.source = 'model'
JOIN model ON model.fingerprint = machine.fingerprint
ORDER BY human.created_at DESC, uri, model.name
LIMIT 1000;
