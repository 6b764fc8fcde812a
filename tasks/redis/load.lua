-- A document and the time, so that whoever decides does so by this server's clock.
-- KEYS[1]  hash {version, document}
-- returns  {version or false, document or false, seconds, microseconds}
local found = redis.call('HMGET', KEYS[1], 'version', 'document')
local time = redis.call('TIME')
return {found[1], found[2], time[1], time[2]}
