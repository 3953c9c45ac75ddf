-- Each organization's preferred model, and the one that is asked once when the preferred one fails.
-- No fallback at all is written as NULL.
ALTER TABLE organizations
    ADD COLUMN llm_model          text NOT NULL DEFAULT 'gpt-4o' CHECK (llm_model <> ''),
    ADD COLUMN llm_fallback_model text DEFAULT 'claude-3-5-sonnet' CHECK (llm_fallback_model <> '');
