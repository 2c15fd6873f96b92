-- Which pictures were taken on this day of the year?
-- A server has no day of yours: it is that of UTC.
SELECT taken_at, caption, uri
FROM captions
WHERE to_char(taken_at, 'MM-DD') = to_char(now(), 'MM-DD')
ORDER BY taken_at, uri;
