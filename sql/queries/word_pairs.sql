-- Which two words stand side by side in most of the latest 100,000 captions?
WITH word AS (
    SELECT image.content_hash, part.key AS place, lower(trim(part.value, '.,;:!?"()')) AS word
    FROM (SELECT content_hash, caption_id FROM image ORDER BY caption_id DESC LIMIT 100000) AS image
    JOIN caption ON caption.id = image.caption_id
    -- The caption as a JSON array of its words.
    JOIN json_each('[' || replace(json_quote(caption.text), ' ', '","') || ']') AS part
),
pair AS (
    SELECT
        content_hash,
        word AS first,
        lead(word) OVER (PARTITION BY content_hash ORDER BY place) AS second
    FROM word
    WHERE word NOT IN ('', 'a', 'an', 'the', 'and', 'of', 'in', 'on', 'at', 'to', 'by', 'with', 'is', 'are', 'it', 'its', 'for', 'from')
)
SELECT first || ' ' || second AS pair, count(DISTINCT content_hash) AS images
FROM pair
WHERE second IS NOT NULL
GROUP BY first, second
ORDER BY images DESC, pair
LIMIT 100;
