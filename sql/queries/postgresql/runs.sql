-- How did the last runs end, how long did they take, and what did they do?
SELECT
    run.started_at,
    run.state,
    round(extract(epoch FROM run.finished_at - run.started_at)::numeric, 1) AS duration_s,
    coalesce((run.counts ->> 'captioned')::bigint, 0) AS captioned,
    coalesce((run.counts ->> 'known')::bigint, 0) AS known,
    coalesce((run.counts ->> 'failed')::bigint, 0) AS failed,
    model.name AS model
FROM run
JOIN model ON model.fingerprint = run.fingerprint
ORDER BY run.started_at DESC
LIMIT 20;
