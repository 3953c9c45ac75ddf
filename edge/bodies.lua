-- Bounds the bodies whose length nobody has told: those are counted as they pass.
local Limit = {id = "body limit", flags = filter.FLT_CFG_FL_HTX}

function Limit:new()
    return setmetatable({bytes = 0}, {__index = self})
end

function Limit:http_headers(txn, message)
    if not message.channel:is_resp() and message:get_headers()["content-length"] == nil then
        filter.register_data_filter(self, message.channel)
    end
end

function Limit:http_payload(txn, message)
    self.bytes = self.bytes + message:input()
    if self.bytes > self.limit then
        txn:set_var("txn.refusal", txn:get_var("proc.too_large"))
        -- The only way out that leaves the answer whole (HAProxy 3.0). The edge's log has this line too.
        error("a body without Content-Length grew larger than maxBodyMb and was refused", 0)
    end
end

core.register_filter("body-limit", Limit, function(limit, arguments)
    limit.limit = tonumber(arguments[1])
    return limit
end)
