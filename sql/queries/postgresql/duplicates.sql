-- Which pictures are kept in several places, and how much room would one copy of each free?
SELECT
    count(*) AS copies,
    (count(*) - 1) * size_bytes AS bytes_to_free,
    min(caption) AS caption,
    string_agg(uri, chr(10) ORDER BY uri) AS uris
FROM captions
GROUP BY content_hash, size_bytes
HAVING count(*) > 1
ORDER BY bytes_to_free DESC, content_hash;
