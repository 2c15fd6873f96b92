-- How many images show which animals?
WITH wanted (stem, animal) AS (
    -- Captions are searched by the stems of their words.
    VALUES
        ('dog', 'dog'), ('puppi', 'dog'), ('cat', 'cat'), ('kitten', 'cat'),
        ('bird', 'bird'), ('pigeon', 'bird'), ('seagul', 'bird'), ('duck', 'duck'),
        ('hors', 'horse'), ('poni', 'horse'), ('cow', 'cow'), ('cattl', 'cow'),
        ('sheep', 'sheep'), ('lamb', 'sheep'), ('goat', 'goat'), ('pig', 'pig'),
        ('chicken', 'chicken'), ('fish', 'fish'), ('eleph', 'elephant'), ('lion', 'lion'),
        ('tiger', 'tiger'), ('bear', 'bear'), ('monkey', 'monkey'), ('giraff', 'giraffe'),
        ('zebra', 'zebra'), ('deer', 'deer'), ('rabbit', 'rabbit'), ('butterfli', 'butterfly'),
        ('insect', 'insect'), ('bee', 'insect')
)
SELECT
    animal,
    count(DISTINCT image.content_hash) AS images,
    round(CAST(avg(caption.confidence) AS numeric), 2) AS mean_confidence,
    min(location.uri) AS example
FROM wanted
JOIN shown ON shown.search_vector @@ wanted.stem::tsquery
JOIN caption ON caption.id = shown.caption_id
JOIN image ON image.caption_id = caption.id
JOIN location ON location.content_hash = image.content_hash AND location.vanished_at IS NULL
GROUP BY animal
ORDER BY images DESC, animal;
