"""The style of the report page; light or dark as the reader's system is set."""

CSS = """
:root { --ink: #1c2733; --muted: #5d6875; --rule: #dde2e8; --paper: #ffffff; --card: #f6f8fa; --good: #0a6b4d;
  --bad: #a8261c; --warn: #8a5a00; --accent: #0072b2; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaef; --muted: #9aa5b1; --rule: #2c3540; --paper: #12171d;
  --card: #1a2129; --good: #4cc79a; --bad: #ff8a7d; --warn: #e9b44c; --accent: #56b4e9; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1060px; margin: 0 auto; padding: 40px 24px 80px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0; letter-spacing: -0.01em; }
h2 { font-size: 19px; margin: 48px 0 12px; padding-top: 20px; border-top: 1px solid var(--rule); }
p { margin: 0 0 10px; max-width: 78ch; }
.about { color: var(--muted); margin: 6px 0 24px; }
.pill { display: inline-block; vertical-align: 5px; margin-left: 12px; padding: 1px 11px; border-radius: 999px;
  border: 1px solid currentColor; font-size: 13px; font-weight: 600; }
.good { color: var(--good); } .bad { color: var(--bad); } .warn { color: var(--warn); }
.note { border-left: 4px solid var(--warn); background: var(--card); padding: 12px 18px; margin: 20px 0;
  border-radius: 0 8px 8px 0; }
.note.cause { border-color: var(--bad); } .note h3 { margin: 0 0 4px; font-size: 15px; }
.note ul, .found { margin: 0; padding-left: 20px; } .found li { margin-bottom: 6px; max-width: 82ch; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(158px, 1fr)); gap: 12px; margin: 0 0 24px; }
.tile { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 14px 16px; }
.tile .label { color: var(--muted); font-size: 13px; }
.tile .sub { color: var(--muted); font-size: 12.5px; line-height: 1.35; }
.tile .value { font-size: 26px; font-weight: 650; line-height: 1.3; letter-spacing: -0.01em; white-space: nowrap; }
figure { margin: 26px 0; } figure img { display: block; width: 100%; height: auto; background: #fff; padding: 10px;
  border: 1px solid var(--rule); border-radius: 10px; }
figcaption { color: var(--muted); font-size: 14px; margin-top: 8px; max-width: 88ch; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; margin: 0 0 16px; min-width: 420px; }
th, td { text-align: right; padding: 5px 14px 5px 0; border-bottom: 1px solid var(--rule); white-space: nowrap;
  font-variant-numeric: tabular-nums; }
th { color: var(--muted); font-weight: 600; } th:first-child, td:first-child { text-align: left; }
.wordy td:last-child, .wordy th:last-child { text-align: left; padding-left: 10px; }
th[scope=row] { color: inherit; font-weight: 400; }
caption { text-align: left; color: var(--muted); font-size: 13.5px; padding-bottom: 6px; }
pre { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 14px 16px; overflow-x: auto;
  font: 12.5px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; margin: 8px 0; }
summary { cursor: pointer; } a { color: var(--accent); }
@media print { main { max-width: none; padding: 0; } figure { break-inside: avoid; } }
"""
