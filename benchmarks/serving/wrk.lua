-- Asks with the bodies of a file, one a line, in turn; ends with a line `RESULT {...}`. Times are microseconds.

local asked, number = {}, 0

function init(arguments)
  wrk.method = "POST"
  for line in io.lines(arguments[1]) do
    asked[#asked + 1] = wrk.format(nil, nil, nil, line)
  end
end

function request()
  number = number % #asked + 1
  return asked[number]
end

function done(summary, latency, requests)
  local failed = summary.errors
  io.write(string.format(
    'RESULT {"requests": %d, "microseconds": %d, "refused": %d, "broken": %d, "late": %d, ' ..
    '"p50": %.1f, "p95": %.1f, "p99": %.1f, "most": %.1f}\n',
    summary.requests, summary.duration, failed.status, failed.connect + failed.read + failed.write, failed.timeout,
    latency:percentile(50), latency:percentile(95), latency:percentile(99), latency.max
  ))
end
