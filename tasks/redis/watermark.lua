-- The last complete scan of a tenant, never backwards.
-- KEYS[1]  hash {fence, started_at, files}
-- ARGV[1]  fence
-- ARGV[2]  when that scan started, RFC 3339
-- ARGV[3]  files of the index after it
-- ARGV[4]  the key's life from now on, seconds
-- returns  1 written, 0 what is there is as new or newer
if tonumber(redis.call('HGET', KEYS[1], 'fence') or -1) >= tonumber(ARGV[1]) then
  return 0
end
redis.call('HSET', KEYS[1], 'fence', ARGV[1], 'started_at', ARGV[2], 'files', ARGV[3])
redis.call('EXPIRE', KEYS[1], ARGV[4])
return 1
