-- Which captions is the model least sure of? A person should look at these first.
SELECT
    round(CAST(confidence AS numeric), 3) AS confidence,
    caption,
    uri
FROM captions
WHERE source = 'model' AND confidence IS NOT NULL
ORDER BY captions.confidence, uri
LIMIT 100;
