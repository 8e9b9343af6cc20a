-- Remembers for a moment whom ext_authz took a key for, so that a busy client is asked about once a second and worker.
--
-- Runs before ext_authz. A hit sets the identity as ext_authz would, takes the key away and marks the stream, which
-- makes ext_authz pass it; anything else (no mark, an error in here) is asked about. How long an answer may be believed
-- comes with it (x-good-for-ms) and is counted from before the question, so that no key outlives its revocation by more.
local MARK = "gateway.known_key"
local ANSWER = "envoy.filters.http.ext_authz"
local MAX_KEYS = 10000
local MAX_KEY_LENGTH = 512

local known = {}
local count = 0

function envoy_on_request(handle)
  local headers = handle:headers()
  if headers:getNumValues("x-api-key") ~= 1 then
    return
  end
  local key = headers:get("x-api-key")
  if #key == 0 or #key > MAX_KEY_LENGTH then
    return
  end
  local now = handle:timestamp()
  local metadata = handle:streamInfo():dynamicMetadata()
  local who = known[key]
  if who ~= nil and now < who.ends then
    headers:replace("x-tenant-id", who.tenant_id)
    headers:replace("x-role", who.role)
    headers:replace("x-key-id", who.key_id)
    headers:remove("x-api-key")
    metadata:set(MARK, "hit", true)
    return
  end
  if who ~= nil then
    known[key] = nil
    count = count - 1
  end
  metadata:set(MARK, "key", key)
  metadata:set(MARK, "asked", now)
end

function envoy_on_response(handle)
  local metadata = handle:streamInfo():dynamicMetadata()
  local mine = metadata:get(MARK)
  if mine == nil or mine["key"] == nil then
    return
  end
  local answer = metadata:get(ANSWER)
  if answer == nil then
    return
  end
  local good_for = tonumber(answer["x-good-for-ms"])
  if good_for == nil or answer["x-role"] == nil or answer["x-role"] == "" then
    return
  end
  local key, ends = mine["key"], mine["asked"] + good_for
  if ends <= handle:timestamp() then
    return
  end
  if known[key] == nil then
    if count >= MAX_KEYS then
      known, count = {}, 0
    end
    count = count + 1
  end
  known[key] = {
    ends = ends,
    tenant_id = answer["x-tenant-id"] or "",
    role = answer["x-role"],
    key_id = answer["x-key-id"] or "",
  }
end
