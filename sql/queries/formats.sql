-- How much room does each format take, and how large are its pictures?
SELECT
    format,
    count(*) AS files,
    count(DISTINCT content_hash) AS images,
    sum(size_bytes) AS size_bytes,
    round(CAST(avg(size_bytes) AS numeric), 0) AS mean_size_bytes,
    round(CAST(avg(1.0 * width * height) / 1000000 AS numeric), 1) AS mean_megapixels
FROM captions
GROUP BY format
ORDER BY size_bytes DESC, format;
