"""The page that `soundomni demo` ends in: what it shows (report), how a clip becomes part of it (sounds), and its HTML (render, curves)."""
