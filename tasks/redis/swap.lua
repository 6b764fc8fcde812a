-- Compare and swap: the document is replaced only if it is still the one that was read.
-- KEYS[1]  hash {version, document}
-- ARGV[1]  the version that was read, empty for none
-- ARGV[2]  the new version, never used before
-- ARGV[3]  the new document, empty to remove the key
-- ARGV[4]  its life from now on, milliseconds
-- returns  1 done, 0 somebody else was first
if (redis.call('HGET', KEYS[1], 'version') or '') ~= ARGV[1] then
  return 0
end
if ARGV[3] == '' then
  redis.call('DEL', KEYS[1])
else
  redis.call('HSET', KEYS[1], 'version', ARGV[2], 'document', ARGV[3])
  redis.call('PEXPIRE', KEYS[1], ARGV[4])
end
return 1
