-- Which captions were made last?
SELECT captioned_at, caption, coalesce(model, 'people') AS captioned_by, uri
FROM captions
ORDER BY captioned_at DESC, uri
LIMIT 100;
