-- What the replicas have counted, in one answer for Prometheus. Each has a series of its own, by its label `replica`.
local newest, previous = ...
local PATH, MILLISECONDS = "/llm-gateway/metrics", 2000

-- The counters of a replica; nil where it does not answer, or has another generation's key.
local function counters(server, key)
    local url = "http://" .. server:get_addr() .. PATH
    local headers = {authorization = {"Bearer " .. key}}
    local answer = core.httpclient():get{url = url, headers = headers, timeout = MILLISECONDS}
    return answer and answer.status == 200 and answer.body or nil
end

core.register_service("usage", "http", function(applet)
    local counts, families, samples, seen = {counted = 0, silent = 0}, {}, {}, {}
    for name, key in pairs({[newest] = applet:get_var("txn.newest"), [previous] = applet:get_var("txn.previous")}) do
        for server_name, server in pairs(core.backends[name].servers) do
            local status = server:get_stats().status
            if server_name:match("^replica") and (status:match("^UP") or status:match("^DRAIN")) then
                local body = counters(server, key)
                counts[body and "counted" or "silent"] = counts[body and "counted" or "silent"] + 1
                for line in (body or ""):gmatch("[^\n]+") do
                    local family = line:match("^# %u+ (%S+)") or line:match("^[^{ ]+")
                    if not samples[family] then
                        samples[family] = {}
                        table.insert(families, family)
                    end
                    if not seen[line] then
                        seen[line] = true
                        table.insert(samples[family], line .. "\n")
                    end
                end
            end
        end
    end
    local text = {"# HELP llm_gateway_replicas Replicas whose counters are here, and those that did not tell theirs.\n"}
    table.insert(text, "# TYPE llm_gateway_replicas gauge\n")
    for state, count in pairs(counts) do
        table.insert(text, string.format('llm_gateway_replicas{state="%s"} %d\n', state, count))
    end
    for _, family in ipairs(families) do
        table.insert(text, table.concat(samples[family]))
    end
    local body = table.concat(text)
    applet:set_status(200)
    applet:add_header("content-type", "text/plain; version=0.0.4; charset=utf-8")
    applet:add_header("content-length", tostring(#body))
    applet:start_response()
    applet:send(body)
end)
