-- Which captions are in no Parquet file yet? The next run of index writes them.
SELECT result.created_at AS captioned_at, result.uri, caption.text AS caption
FROM result
JOIN caption ON caption.id = result.caption_id
WHERE result.part_id IS NULL
ORDER BY result.id
LIMIT 1000;
