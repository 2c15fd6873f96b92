-- How many images show people, and of which kind?
WITH wanted (stem, kind) AS (
    -- Captions are searched by the stems of their words.
    VALUES
        ('man', 'man'), ('men', 'man'), ('woman', 'woman'), ('women', 'woman'),
        ('person', 'person'), ('peopl', 'person'), ('boy', 'boy'), ('girl', 'girl'),
        ('child', 'child'), ('children', 'child'), ('kid', 'child'), ('toddler', 'child'),
        ('babi', 'baby'), ('crowd', 'crowd'), ('coupl', 'couple'), ('famili', 'family')
)
SELECT
    kind,
    count(DISTINCT image.content_hash) AS images,
    round(CAST(avg(caption.confidence) AS numeric), 2) AS mean_confidence,
    min(location.uri) AS example
FROM wanted
JOIN shown ON shown.search_vector @@ wanted.stem::tsquery
JOIN caption ON caption.id = shown.caption_id
JOIN image ON image.caption_id = caption.id
JOIN location ON location.content_hash = image.content_hash AND location.vanished_at IS NULL
GROUP BY kind
ORDER BY images DESC, kind;
