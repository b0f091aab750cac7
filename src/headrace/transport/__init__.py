"""HTTP in, tokens out: TGI and OpenAI routes. No torch, no engine."""
