-- How many images were taken in each month, by the camera's clock?
SELECT
    strftime('%Y-%m', taken_at) AS month,
    count(DISTINCT content_hash) AS images,
    min(uri) AS example
FROM captions
WHERE taken_at IS NOT NULL
GROUP BY month
ORDER BY month;
