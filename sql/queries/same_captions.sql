-- Which captions were given to the most different images? Here a model has little to say.
SELECT caption.text AS caption, count(*) AS images, round(CAST(avg(caption.confidence) AS numeric), 2) AS mean_confidence
FROM image
JOIN caption ON caption.id = image.caption_id
GROUP BY caption.text
HAVING count(*) > 1
ORDER BY images DESC, caption.text
LIMIT 100;
