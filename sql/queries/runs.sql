-- How did the last runs end, how long did they take, and what did they do?
SELECT
    run.started_at,
    run.state,
    round((julianday(run.finished_at) - julianday(run.started_at)) * 86400, 1) AS duration_s,
    coalesce(json_extract(run.counts, '$.captioned'), 0) AS captioned,
    coalesce(json_extract(run.counts, '$.known'), 0) AS known,
    coalesce(json_extract(run.counts, '$.failed'), 0) AS failed,
    model.name AS model
FROM run
JOIN model ON model.fingerprint = run.fingerprint
ORDER BY run.started_at DESC
LIMIT 20;
