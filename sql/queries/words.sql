-- Which words do the latest 100,000 captions use most, in how many images, and in which for example?
WITH word AS (
    SELECT image.content_hash, lower(trim(part.value, '.,;:!?"()')) AS word
    FROM (SELECT content_hash, caption_id FROM image ORDER BY caption_id DESC LIMIT 100000) AS image
    JOIN caption ON caption.id = image.caption_id
    -- The caption as a JSON array of its words.
    JOIN json_each('[' || replace(json_quote(caption.text), ' ', '","') || ']') AS part
),
common AS (
    SELECT word, count(DISTINCT content_hash) AS images, min(content_hash) AS example
    FROM word
    WHERE word NOT IN ('', 'a', 'an', 'the', 'and', 'of', 'in', 'on', 'at', 'to', 'by', 'with', 'is', 'are', 'it', 'its', 'for', 'from')
    GROUP BY word
    ORDER BY images DESC, word
    LIMIT 100
)
SELECT
    word,
    images,
    (SELECT min(uri) FROM location
     WHERE location.content_hash = common.example AND location.vanished_at IS NULL) AS example
FROM common
ORDER BY images DESC, word;
