-- Which captions are of another model than that of the last run? index --recaption makes them again.
SELECT model.name AS model, captions.caption, captions.captioned_at, captions.uri
FROM captions
JOIN image ON image.content_hash = captions.content_hash
JOIN caption ON caption.id = image.caption_id
JOIN model ON model.fingerprint = caption.fingerprint
WHERE caption.fingerprint <> (
    SELECT run.fingerprint
    FROM run
    WHERE run.state = 'done' AND EXISTS (SELECT 1 FROM caption AS any_caption
        WHERE any_caption.fingerprint = run.fingerprint)
    ORDER BY run.started_at DESC
    LIMIT 1
)
ORDER BY captions.captioned_at, captions.uri
LIMIT 1000;
