-- What do the captions say in the folder that was captioned last?
SELECT uri, caption, round(CAST(confidence AS numeric), 2) AS confidence
FROM captions
WHERE rtrim(uri, replace(uri, '/', '')) = (
    SELECT rtrim(uri, replace(uri, '/', ''))
    FROM captions
    ORDER BY captioned_at DESC, uri DESC
    LIMIT 1
)
ORDER BY uri;
