-- How many images a second did each run caption, start and end included?
SELECT
    run.started_at,
    model.name AS model,
    json_extract(run.counts, '$.captioned') AS captioned,
    round((julianday(run.finished_at) - julianday(run.started_at)) * 86400, 1) AS duration_s,
    round(json_extract(run.counts, '$.captioned')
        / nullif((julianday(run.finished_at) - julianday(run.started_at)) * 86400, 0), 1) AS images_per_s
FROM run
JOIN model ON model.fingerprint = run.fingerprint
WHERE json_extract(run.counts, '$.captioned') > 0
ORDER BY run.started_at DESC
LIMIT 50;
