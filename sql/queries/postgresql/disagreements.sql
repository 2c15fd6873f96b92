-- Which images do two models describe in the most different words?
WITH word AS (
    SELECT DISTINCT caption.id, part AS word
    FROM caption
    CROSS JOIN LATERAL unnest(string_to_array(caption.search_text, ' ')) AS part
    WHERE caption.source = 'model'
),
size AS (
    SELECT id, count(*) AS words FROM word GROUP BY id
),
pair AS (
    SELECT one.content_hash, one.id AS one_id, other.id AS other_id, one.text AS one, other.text AS other,
        one.fingerprint AS one_model, other.fingerprint AS other_model
    FROM caption AS one
    JOIN caption AS other ON other.content_hash = one.content_hash AND other.fingerprint > one.fingerprint
),
shared AS (
    SELECT pair.one_id, pair.other_id, count(*) AS words
    FROM pair
    JOIN word AS one_word ON one_word.id = pair.one_id
    JOIN word AS other_word ON other_word.id = pair.other_id AND other_word.word = one_word.word
    GROUP BY pair.one_id, pair.other_id
)
SELECT
    round(1.0 * coalesce(shared.words, 0) / (one_size.words + other_size.words - coalesce(shared.words, 0)), 2)
        AS words_in_common,
    pair.one AS caption,
    pair.other AS other_caption,
    one_model.name AS model,
    other_model.name AS other_model,
    (SELECT min(uri) FROM location
     WHERE location.content_hash = pair.content_hash AND vanished_at IS NULL) AS uri
FROM pair
JOIN size AS one_size ON one_size.id = pair.one_id
JOIN size AS other_size ON other_size.id = pair.other_id
JOIN model AS one_model ON one_model.fingerprint = pair.one_model
JOIN model AS other_model ON other_model.fingerprint = pair.other_model
LEFT JOIN shared ON shared.one_id = pair.one_id AND shared.other_id = pair.other_id
WHERE pair.one <> pair.other
ORDER BY words_in_common, pair.content_hash, pair.one_id
LIMIT 100;
