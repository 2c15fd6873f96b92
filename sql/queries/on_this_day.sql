-- Which pictures were taken on this day of the year?
SELECT taken_at, caption, uri
FROM captions
WHERE strftime('%m-%d', taken_at) = strftime('%m-%d', 'now', 'localtime')
ORDER BY taken_at, uri;
