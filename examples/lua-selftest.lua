-- What a freshly compiled Lua must get right before anything is built with it. Any failure fails the build.

local checks = 0
local function check(what, ok)
  checks = checks + 1
  if not ok then
    error("lua self-test: " .. what, 2)
  end
end

check("integers wrap at 64 bits", math.maxinteger + 1 == math.mininteger)
check("floats keep 53 bits", 2 ^ 53 == 2 ^ 53 + 1.0)
check("integer and float division differ", 7 // 2 == 3 and 7 / 2 == 3.5)
check("strings format", string.format("%5.2f|%-4s|%x", 3.14159, "ab", 255) == " 3.14|ab  |ff")
check("patterns capture", ("key = value"):match("^(%w+)%s*=%s*(%w+)$") == "key")
check("utf8 counts characters", utf8.len("scheune für alle") == 16)
check("pack and unpack agree", string.unpack("<I4", string.pack("<I4", 0xdeadbeef)) == 0xdeadbeef)

-- Closures, metatables and the collector.
local function counter()
  local n = 0
  return function()
    n = n + 1
    return n
  end
end
local a, b = counter(), counter()
a()
check("closures do not share state", a() == 2 and b() == 1)

local vector = setmetatable({}, { __add = function(_, other) return other * 2 end, __len = function() return 42 end })
check("metamethods are called", vector + 21 == 42 and #vector == 42)

local weak = setmetatable({ {} }, { __mode = "v" })
collectgarbage()
check("weak values are collected", weak[1] == nil)

-- Coroutines and errors.
local generator = coroutine.wrap(function()
  for i = 1, 3 do
    coroutine.yield(i * i)
  end
end)
check("coroutines yield in order", generator() == 1 and generator() == 4 and generator() == 9)
local ok, message = pcall(error, { code = 7 })
check("errors carry values", not ok and message.code == 7)
check("compiled chunks run", load(string.dump(load("return 6 * 7")))() == 42)

-- A little work, so that a miscompiled loop has a chance to show.
local sieve, primes = {}, 0
for i = 2, 20000 do
  if not sieve[i] then
    primes = primes + 1
    for j = i * i, 20000, i do
      sieve[j] = true
    end
  end
end
check("there are 2262 primes below 20000", primes == 2262)

local words = {}
for i = 1, 2000 do
  words[i] = string.format("%04d", (i * 7919) % 2000)
end
table.sort(words)
check("sorting sorts", words[1] == "0000" and words[2000] == "1999")

print(string.format("lua self-test: %d checks passed on %s", checks, _VERSION))
