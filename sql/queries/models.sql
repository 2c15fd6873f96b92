-- How many images has each model captioned, how many of these captions are shown, and how sure is it?
SELECT
    coalesce(model.name, 'people') AS captioned_by,
    substr(caption.fingerprint, 1, 12) AS fingerprint,
    count(*) AS captions,
    count(image.caption_id) AS shown,
    round(CAST(avg(caption.confidence) AS numeric), 2) AS mean_confidence,
    count(*) FILTER (WHERE caption.confidence < 0.2) AS unsure
FROM caption
LEFT JOIN model ON model.fingerprint = caption.fingerprint
LEFT JOIN image ON image.caption_id = caption.id
GROUP BY coalesce(model.name, 'people'), caption.fingerprint
ORDER BY captions DESC, captioned_by, caption.fingerprint;
