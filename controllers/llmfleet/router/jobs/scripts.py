"""The state machine of a job, as Lua that Redis runs atomically.

In: nothing. Out: texts. Every change of a job's state is one of these scripts, so that two routers can never both end
a job, a queue never grows past its bound, and a crash between two writes does not exist. Time is Redis' own: no
router's clock matters. They never trim a queue.

    admit -> queued -> claim -> running -> finish -> complete | failed
               |  ^                |  |
               |  +-- give back ---+  +-> give back, attempts used up -> dead
               +-> sweep: expired     +-> sweep: nobody renewed it    -> dead
    cancel: queued or running -> cancelled

Keys, all under one prefix with a hash tag:
    PREFIX:job:ID          hash: the request, later its answer
    PREFIX:queue:KLASS:M   stream of ids, one consumer group; holds exactly the jobs of model M that are not final
    PREFIX:share:M         hash: tenant -> jobs of it in the queue
    PREFIX:due             sorted set: id -> when it expires (queued) or is given up for lost (running)
    PREFIX:once:T:DIGEST   hash: the job an idempotency key of tenant T stands for
    PREFIX:dead            stream: the last thousand dead letters, without their prompts
    PREFIX:events          channel: `new MODEL`, `end ID STATE`
"""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Final

# The group has one reader's name for all routers: who holds a job is said by its fence, not by Redis' list of readers.
# Every claim draws a new fence, so a worker whose lease ran out cannot end what another has taken over. A number that
# grows would not do: after a failover that forgot a claim, the next one would be given the same number.

_COMMON: Final = """
local P = KEYS[1]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local GROUP, READER = 'workers', 'router'

local function job_key(id) return P .. ':job:' .. id end

local function queue_of(klass, model) return P .. ':queue:' .. klass .. ':' .. model end

local function settle(id, state, keep)
    local key = job_key(id)
    local job = redis.call('HMGET', key, 'klass', 'model', 'tenant', 'entry', 'once', 'attempts')
    local queue, share = queue_of(job[1], job[2]), P .. ':share:' .. job[2]
    redis.call('XACK', queue, GROUP, job[4])
    redis.call('XDEL', queue, job[4])
    redis.call('ZREM', P .. ':due', id)
    if redis.call('HINCRBY', share, job[3], -1) <= 0 then redis.call('HDEL', share, job[3]) end
    redis.call('HSET', key, 'state', state, 'finished', now)
    redis.call('HDEL', key, 'body', 'fields')
    redis.call('PEXPIRE', key, keep)
    if job[5] ~= '' and redis.call('HGET', job[5], 'id') == id then redis.call('PEXPIRE', job[5], keep) end
    if state == 'dead' then
        redis.call('XADD', P .. ':dead', 'MAXLEN', '~', 1000, '*',
            'id', id, 'model', job[2], 'tenant', job[3], 'attempts', job[6])
    end
    redis.call('PUBLISH', P .. ':events', 'end ' .. id .. ' ' .. state)
end

local function mine(id, fence)
    local job = redis.call('HMGET', job_key(id), 'state', 'fence')
    return job[1] == 'running' and job[2] == fence
end

-- Whether this claim brought the job into this state already: it is told again, as nobody knew whether it was heard, or
-- not yet by enough replicas. Something is written, as WAIT speaks of writes only.
local function told(id, fence, state)
    local job = redis.call('HMGET', job_key(id), 'state', 'fence')
    if job[1] ~= state or job[2] ~= fence then return false end
    redis.call('HSET', job_key(id), 'fence', fence)
    return true
end
"""

# Over its memory limit Redis refuses a script that may need memory, before its first command; those that end jobs may
# run all the same: they free the request's memory, and how many there can be was bounded at admission.
_STRICT: Final = "#!lua\n"
_ALWAYS: Final = "#!lua flags=allow-oom\n"

ADMIT: Final = (
    _STRICT
    + _COMMON
    + """
local id, model, klass, tenant, path, body, fields = unpack(ARGV, 1, 7)
local ttl, capacity, share_limit, keep = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10]), tonumber(ARGV[11])
local once, digest = ARGV[12], ARGV[13]
if once ~= '' then
    local seen = redis.call('HMGET', once, 'id', 'digest')
    if seen[1] then
        local old = redis.call('HMGET', job_key(seen[1]), 'state', 'created', 'deadline')
        if old[1] then
            local verdict = seen[2] == digest and 'again' or 'conflict'
            if verdict == 'again' then redis.call('HSET', job_key(seen[1]), 'again', 1) end
            return {verdict, seen[1], old[1], 0, old[2], old[3]}
        end
    end
end
local held = 0
for i = 14, #ARGV do held = held + redis.call('XLEN', queue_of(ARGV[i], model)) end
if held >= capacity then return {'full', id, 'queued', held, now, 0} end
local share = P .. ':share:' .. model
local used = tonumber(redis.call('HGET', share, tenant) or '0')
if share_limit > 0 and used >= share_limit then return {'share', id, 'queued', used, now, 0} end
local entry = redis.call('XADD', queue_of(klass, model), '*', 'id', id)
redis.call('HSET', job_key(id), 'state', 'queued', 'model', model, 'klass', klass, 'tenant', tenant, 'path', path,
    'body', body, 'fields', fields, 'entry', entry, 'created', now, 'deadline', now + ttl, 'ttl', ttl,
    'attempts', 0, 'fence', '', 'once', once)
redis.call('ZADD', P .. ':due', now + ttl, id)
redis.call('HINCRBY', share, tenant, 1)
if once ~= '' then
    redis.call('HSET', once, 'id', id, 'digest', digest)
    redis.call('PERSIST', once)
end
redis.call('PUBLISH', P .. ':events', 'new ' .. model)
return {'stored', id, 'queued', held + 1, now, now + ttl}
"""
)

# KEYS[2..] are the queues to look at, the most urgent first. Entries whose worker went silent come before new ones.
# One that expired is left for the sweep, one that used its attempts up is ended here and returned without its request.
CLAIM: Final = (
    _ALWAYS
    + _COMMON
    + """
local worker, lease, limit, keep, orphan = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5])
local fence = ARGV[6]

local function take(queue, entry, id)
    local key = job_key(id)
    local job = redis.call('HMGET', key, 'state', 'entry', 'deadline', 'attempts')
    if (job[1] ~= 'queued' and job[1] ~= 'running') or job[2] ~= entry then
        redis.call('XACK', queue, GROUP, entry)
        redis.call('XDEL', queue, entry)
        return nil
    end
    if job[1] == 'queued' and tonumber(job[3]) <= now then return nil end
    if tonumber(job[4]) >= limit then settle(id, 'dead', keep) return {id, redis.call('HGET', key, 'model')} end
    local attempts = redis.call('HINCRBY', key, 'attempts', 1)
    redis.call('HSET', key, 'state', 'running', 'started', now, 'worker', worker, 'fence', fence)
    redis.call('ZADD', P .. ':due', now + orphan, id)
    local rest = redis.call('HMGET', key, 'created', 'tenant', 'model', 'klass', 'path', 'body', 'fields')
    rest[1] = now - rest[1]
    return {id, fence, attempts, unpack(rest)}
end

local function stuck(queue)
    while true do
        -- Without this look XAUTOCLAIM would go through all that runs, ten at a time.
        local idle = redis.call('XPENDING', queue, GROUP, 'IDLE', lease, '-', '+', 1)[1]
        if not idle then return nil end
        local found = redis.call('XAUTOCLAIM', queue, GROUP, READER, lease, idle[1], 'COUNT', 1)
        for _, item in ipairs(found[2]) do
            local job = take(queue, item[1], item[2][2])
            if job then return job end
        end
    end
end

local function fresh(queue)
    while true do
        local found = redis.call('XREADGROUP', 'GROUP', GROUP, READER, 'COUNT', 1, 'STREAMS', queue, '>')
        if not found or not found[1] then return nil end
        local item = found[1][2][1]
        if not item then return nil end
        local job = take(queue, item[1], item[2][2])
        if job then return job end
    end
end

for i = 2, #KEYS do
    local queue = KEYS[i]
    if redis.call('XLEN', queue) > 0 then
        redis.pcall('XGROUP', 'CREATE', queue, GROUP, '0')
        local job = stuck(queue) or fresh(queue)
        if job then return job end
    end
end
return false
"""
)

RENEW: Final = (
    _ALWAYS
    + _COMMON
    + """
local id, fence, orphan = ARGV[1], ARGV[2], tonumber(ARGV[3])
if not mine(id, fence) then return 0 end
local job = redis.call('HMGET', job_key(id), 'klass', 'model', 'entry')
redis.call('XCLAIM', queue_of(job[1], job[2]), GROUP, READER, 0, job[3], 'IDLE', 0, 'JUSTID')
redis.call('ZADD', P .. ':due', now + orphan, id)
return 1
"""
)

FINISH: Final = (
    _ALWAYS
    + _COMMON
    + """
local id, fence, state, keep = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
if not mine(id, fence) then return told(id, fence, state) and 1 or 0 end
redis.call('HSET', job_key(id), 'status', ARGV[5], 'type', ARGV[6], 'result', ARGV[7])
settle(id, state, keep)
return 1
"""
)

# An attempt that reached no engine is taken off again; one that did is kept, with those the router made inside it.
GIVE_BACK: Final = (
    _ALWAYS
    + _COMMON
    + """
local id, fence, dispatches = ARGV[1], ARGV[2], tonumber(ARGV[3])
local limit, keep, idle = tonumber(ARGV[4]), ARGV[5], tonumber(ARGV[6])
if not mine(id, fence) then
    return told(id, fence, 'queued') and 'queued' or told(id, fence, 'dead') and 'dead' or ''
end
local key = job_key(id)
local attempts = redis.call('HINCRBY', key, 'attempts', dispatches - 1)
if attempts >= limit then
    if ARGV[8] ~= '' then redis.call('HSET', key, 'status', ARGV[8], 'type', ARGV[9], 'result', ARGV[10]) end
    settle(id, 'dead', keep)
    return 'dead'
end
local job = redis.call('HMGET', key, 'klass', 'model', 'entry', 'deadline', 'ttl')
local deadline = tonumber(job[4])
if ARGV[7] == '1' then deadline = now + tonumber(job[5]) end
redis.call('HSET', key, 'state', 'queued', 'deadline', deadline)
redis.call('ZADD', P .. ':due', deadline, id)
redis.call('XCLAIM', queue_of(job[1], job[2]), GROUP, READER, 0, job[3], 'IDLE', idle, 'JUSTID')
redis.call('PUBLISH', P .. ':events', 'new ' .. job[2])
return 'queued'
"""
)

# `forget` takes back what nobody was told of; a job that stands for a repeated request is somebody's, and stays.
CANCEL: Final = (
    _ALWAYS
    + _COMMON
    + """
local id, tenant, keep, forget = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local key = job_key(id)
local job = redis.call('HMGET', key, 'state', 'tenant', 'once', 'again')
if not job[1] or job[2] ~= tenant then return false end
if forget == '1' and job[4] then return job[1] end
if job[1] == 'queued' or job[1] == 'running' then
    local late = job[1] == 'queued' and tonumber(redis.call('HGET', key, 'deadline')) <= now
    job[1] = late and 'expired' or 'cancelled'
    settle(id, job[1], keep)
else
    redis.call('HSET', key, 'tenant', tenant) -- asked again, perhaps for want of replicas: WAIT speaks of writes only
end
if forget == '1' then
    if job[3] ~= '' and redis.call('HGET', job[3], 'id') == id then redis.call('DEL', job[3]) end
    redis.call('DEL', key)
end
return job[1]
"""
)

# An end, or that there is no such job, is said for good: where a failover may come (`lasting`), something is written
# and the answer waits for replicas. A server that is no longer the primary has none: its view is not believed.
LOOK: Final = (
    _ALWAYS
    + _COMMON
    + """
local id, tenant, lasting = ARGV[1], ARGV[2], ARGV[4] == '1'
local key = job_key(id)
local job = redis.call('HMGET', key, 'state', 'tenant', 'deadline')
if not job[1] or job[2] ~= tenant then
    if lasting then redis.call('SET', P .. ':unknown', now) end
    return {}
end
if lasting and job[1] ~= 'queued' and job[1] ~= 'running' then redis.call('HSET', key, 'tenant', tenant) end
local view = redis.call('HMGET', key, 'state', 'model', 'attempts', 'created', 'deadline', 'started', 'finished',
    'status', 'type')
view[10] = ARGV[3] == '1' and redis.call('HGET', key, 'result') or false
-- The next sweep writes it down; nothing else can happen to it any more.
if job[1] == 'queued' and tonumber(job[3]) <= now then view[1], view[7] = 'expired', job[3] end
return view
"""
)

SWEEP: Final = (
    _ALWAYS
    + _COMMON
    + """
local keep, ended = ARGV[1], {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. ':due', '-inf', now, 'LIMIT', 0, 100)) do
    local job = redis.call('HMGET', job_key(id), 'state', 'deadline', 'model')
    if job[1] == 'running' then
        if ARGV[2] == '1' then
            settle(id, 'dead', keep)
            table.insert(ended, job[3]) table.insert(ended, 'dead')
        end
    elseif job[1] == 'queued' and tonumber(job[2]) <= now then
        settle(id, 'expired', keep)
        table.insert(ended, job[3]) table.insert(ended, 'expired')
    elseif job[1] == 'queued' then
        redis.call('ZADD', P .. ':due', job[2], id)
    else
        redis.call('ZREM', P .. ':due', id)
    end
end
return ended
"""
)

HELD: Final = (
    "#!lua flags=no-writes\n"
    + """
local counts, classes = {}, tonumber(ARGV[1])
for i = 2 + classes, #ARGV do
    local held = 0
    for c = 2, 1 + classes do held = held + redis.call('XLEN', KEYS[1] .. ':queue:' .. ARGV[c] .. ':' .. ARGV[i]) end
    table.insert(counts, held)
end
return counts
"""
)


@cache
def sha(text: str) -> str:
    """Return the name Redis knows a script by."""
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


def base(prefix: str) -> str:
    """First part of every key: the hash tag keeps all of them in one place."""
    return f"{{{prefix}}}"


def queue_key(prefix: str, klass: str, model: str) -> str:
    """Stream of a model's jobs of one class."""
    return f"{base(prefix)}:queue:{klass}:{model}"


def job_key(prefix: str, ident: str) -> str:
    """Hash of one job."""
    return f"{base(prefix)}:job:{ident}"


def once_key(prefix: str, tenant: str, digest: str) -> str:
    """Hash of one idempotency key."""
    return f"{base(prefix)}:once:{tenant}:{digest}"


def events_channel(prefix: str) -> str:
    """Channel on which jobs are announced."""
    return f"{base(prefix)}:events"
