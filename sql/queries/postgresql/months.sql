-- How many images were taken in each month, by the camera's clock?
SELECT
    to_char(taken_at, 'YYYY-MM') AS month,
    count(DISTINCT content_hash) AS images,
    min(uri) AS example
FROM captions
WHERE taken_at IS NOT NULL
GROUP BY month
ORDER BY month;
