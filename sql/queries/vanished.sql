-- Which files are gone, since when, and where is the same picture now?
SELECT
    location.vanished_at,
    location.uri,
    caption.text AS caption,
    (SELECT min(other.uri) FROM location AS other
     WHERE other.content_hash = location.content_hash AND other.vanished_at IS NULL) AS same_picture
FROM location
JOIN image ON image.content_hash = location.content_hash
LEFT JOIN caption ON caption.id = image.caption_id
WHERE location.vanished_at IS NOT NULL
ORDER BY location.vanished_at DESC, location.uri;
