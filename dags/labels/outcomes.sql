-- What became known of each request: one row for each label, added when it arrives and never changed.
SELECT correlation_id, label, arrived
FROM outcomes
WHERE endpoint = :endpoint AND arrived >= :since AND arrived < :until
