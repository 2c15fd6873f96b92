-- How many images a second did each run caption, start and end included?
SELECT
    run.started_at,
    model.name AS model,
    (run.counts ->> 'captioned')::bigint AS captioned,
    round(extract(epoch FROM run.finished_at - run.started_at)::numeric, 1) AS duration_s,
    round((run.counts ->> 'captioned')::bigint
        / nullif(extract(epoch FROM run.finished_at - run.started_at)::numeric, 0), 1) AS images_per_s
FROM run
JOIN model ON model.fingerprint = run.fingerprint
WHERE (run.counts ->> 'captioned')::bigint > 0
ORDER BY run.started_at DESC
LIMIT 50;
