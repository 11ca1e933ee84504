"""The result page of `soundomni demo`: its contents (report), how a clip becomes part of it (sounds), and its HTML
(render, curves)."""
