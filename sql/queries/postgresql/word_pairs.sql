-- Which two words stand side by side in most of the latest 100,000 captions?
WITH word AS (
    SELECT image.content_hash, place, lower(btrim(part, '.,;:!?"()')) COLLATE "C" AS word
    FROM (SELECT content_hash, caption_id FROM image ORDER BY caption_id DESC LIMIT 100000) AS image
    JOIN caption ON caption.id = image.caption_id
    CROSS JOIN LATERAL unnest(string_to_array(caption.text, ' ')) WITH ORDINALITY AS parts (part, place)
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
