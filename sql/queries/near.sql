-- Which images were taken within 10 km of a place, here the Eiffel Tower? Write another's degrees instead.
WITH place AS (
    SELECT 48.8584 AS latitude, 2.2945 AS longitude, 10.0 AS km
),
-- How far north or south of it, and east or west, in degrees; the shorter way around the globe.
apart AS (
    SELECT
        captions.uri,
        captions.caption,
        captions.latitude,
        captions.longitude,
        place.km,
        captions.latitude - place.latitude AS north,
        CASE
            WHEN abs(captions.longitude - place.longitude) > 180
            THEN 360 - abs(captions.longitude - place.longitude)
            ELSE abs(captions.longitude - place.longitude)
        END AS east,
        -- The cosine of the latitude, as Bhaskara approximated it: not every SQLite has one.
        4 * (8100 - place.latitude * place.latitude) / (32400 + place.latitude * place.latitude) AS cosine
    FROM captions
    CROSS JOIN place
    WHERE captions.latitude IS NOT NULL
)
-- A degree is 111.2 km.
SELECT uri, caption, latitude, longitude
FROM apart
WHERE (north * north + east * east * cosine * cosine) * 111.2 * 111.2 <= km * km
ORDER BY north * north + east * east * cosine * cosine, uri;
