-- What could not be captioned, by reason, with one example of each?
SELECT
    reason,
    count(*) AS files,
    sum(size_bytes) AS size_bytes,
    max(updated_at) AS last_seen_at,
    min(uri) AS example,
    (array_agg(detail ORDER BY uri))[1] AS example_detail
FROM quarantine
GROUP BY reason
ORDER BY files DESC, reason;
