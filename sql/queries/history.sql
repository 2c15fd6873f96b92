-- What has been said of the images that have more than one caption, by whom and when?
SELECT
    (SELECT min(uri) FROM location WHERE location.content_hash = image.content_hash) AS uri,
    caption.created_at AS captioned_at,
    coalesce(model.name, 'people') AS captioned_by,
    CASE WHEN caption.id = image.caption_id THEN 'shown' ELSE '' END AS state,
    caption.text AS caption
FROM image
JOIN caption ON caption.content_hash = image.content_hash
LEFT JOIN model ON model.fingerprint = caption.fingerprint
WHERE (SELECT count(*) FROM caption AS any_caption WHERE any_caption.content_hash = image.content_hash) > 1
ORDER BY uri, image.content_hash, caption.created_at, caption.id
LIMIT 1000;
