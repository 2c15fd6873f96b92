-- What is in each folder: how many images, how sure the captions are, and one of them?
SELECT
    rtrim(uri, replace(uri, '/', '')) AS folder,
    count(*) AS files,
    sum(size_bytes) AS size_bytes,
    round(CAST(avg(confidence) AS numeric), 2) AS mean_confidence,
    min(caption) AS example
FROM captions
GROUP BY rtrim(uri, replace(uri, '/', ''))
ORDER BY files DESC, folder
LIMIT 200;
