-- Which files take the most room?
SELECT size_bytes, width, height, format, caption, uri
FROM captions
ORDER BY size_bytes DESC, uri
LIMIT 100;
