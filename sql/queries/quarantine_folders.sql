-- Which folders hold the files that could not be captioned, and for which reason?
SELECT
    rtrim(uri, replace(uri, '/', '')) AS folder,
    reason,
    count(*) AS files,
    sum(size_bytes) AS size_bytes,
    min(uri) AS example
FROM quarantine
GROUP BY rtrim(uri, replace(uri, '/', '')), reason
ORDER BY files DESC, folder, reason;
