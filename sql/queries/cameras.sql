-- How many images were taken with each camera, and from when to when?
SELECT
    camera,
    count(DISTINCT content_hash) AS images,
    min(taken_at) AS first_taken_at,
    max(taken_at) AS last_taken_at,
    min(uri) AS example
FROM captions
WHERE camera IS NOT NULL
GROUP BY camera
ORDER BY images DESC, camera;
