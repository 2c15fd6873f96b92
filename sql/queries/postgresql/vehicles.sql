-- How many images show which vehicles?
WITH wanted (stem, vehicle) AS (
    -- Captions are searched by the stems of their words.
    VALUES
        ('car', 'car'), ('taxi', 'car'), ('truck', 'truck'), ('lorri', 'truck'),
        ('bus', 'bus'), ('van', 'bus'), ('train', 'train'), ('tram', 'train'),
        ('bicycl', 'bicycle'), ('bike', 'bicycle'), ('motorcycl', 'motorcycle'), ('motorbik', 'motorcycle'),
        ('boat', 'boat'), ('cano', 'boat'), ('kayak', 'boat'), ('ship', 'ship'),
        ('plane', 'plane'), ('airplan', 'plane'), ('aeroplan', 'plane'), ('helicopt', 'helicopter'),
        ('skateboard', 'skateboard'), ('scooter', 'scooter'), ('tractor', 'tractor')
)
SELECT
    vehicle,
    count(DISTINCT image.content_hash) AS images,
    round(CAST(avg(caption.confidence) AS numeric), 2) AS mean_confidence,
    min(location.uri) AS example
FROM wanted
JOIN shown ON shown.search_vector @@ wanted.stem::tsquery
JOIN caption ON caption.id = shown.caption_id
JOIN image ON image.caption_id = caption.id
JOIN location ON location.content_hash = image.content_hash AND location.vanished_at IS NULL
GROUP BY vehicle
ORDER BY images DESC, vehicle;
