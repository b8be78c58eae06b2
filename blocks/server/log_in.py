"""The UI in the browser, logged in.

The UI asks for "user:password" and keeps it in the browser's local storage. A page of ours among the UI's files
redirects a browser that is logged in to the UI, or to a run's page there; otherwise it shows the command to run, and
asks for the password. `srf up --open` passes the password behind the `#` of the address, which no server sees. A local
file that only its user can read redirects the browser to that address, because all users can read a program's
arguments. The page also hides the banner for the V2 pages, which report each visit to Prefect's makers.
"""

from __future__ import annotations

import base64
import html
import webbrowser

from slurm_ray_flow.blocks.files import write_whole
from slurm_ray_flow.blocks.server.address import LANDING, ServerAddress
from slurm_ray_flow.blocks.server.files import USER, ServerFiles, auth_string, server_files

_LANDING_PAGE = """<!doctype html><meta charset="utf-8"><title>slurm-ray-flow</title>
<body style="font: 16px/1.6 sans-serif; max-width: 40em; margin: 4em auto; padding: 0 1em">
<div id="asks" hidden><h1>This browser is not logged in</h1>
<p>In a terminal of the machine where the run was started: <code id="command"></code></p>
<form id="form"><p>Or paste what that machine has in <code>SECRET</code>:
<input id="secret" type="password" autocomplete="current-password"> <button>Log in</button> <span id="said"></span>
</p></form></div>
<script>
const given = new URLSearchParams(location.search).get("run") || "";
const run = /^[0-9a-f-]{36}$/.test(given) ? given : "";
async function enter(token) {
  const headers = {Authorization: "Basic " + token};
  const answer = await fetch("/api/admin/version", {headers}).catch(() => ({ok: false}));
  if (!answer.ok) return false;
  localStorage.setItem("prefect-password", token);
  localStorage.setItem("prefect-v2-promo-dismissed", "true");
  location.replace(run ? "/runs/flow-run/" + run : "/");
  return true;
}
async function begin() {
  const token = location.hash.slice(1) || localStorage.getItem("prefect-password");
  if (token && await enter(token)) return;
  const part = id => document.getElementById(id);
  part("command").textContent = ("srf up --open " + run.slice(0, 8)).trim();
  part("form").onsubmit = async event => {
    event.preventDefault();
    if (!await enter(btoa("USER:" + part("secret").value.trim()))) part("said").textContent = "That is not it.";
  };
  part("asks").hidden = false;
}
begin();
</script>
""".replace("USER", USER)

_LOCAL_PAGE = """<!doctype html><meta charset="utf-8"><title>slurm-ray-flow</title><script>
location.replace("{address}");
</script>
"""


def write_landing_page(files: ServerFiles) -> None:
    """Write this package's page into the folder of the UI's files, which Prefect fills when it starts."""
    folder = files.user_interface / "v1"
    if folder.is_dir():
        page = _LANDING_PAGE.replace("SECRET", html.escape(str(files.secret)))
        write_whole(folder / LANDING, page.encode())


def open_ui(address: ServerAddress, run_id: str = "") -> bool:
    """Open the UI, or a run's page, in the user's browser, logged in on this package's own server.

    Returns:
        Whether there is a browser.
    """
    if not address.owned:
        return webbrowser.open(address.page(run_id))
    files = server_files()
    token = base64.b64encode(auth_string(files).encode()).decode()
    page = _LOCAL_PAGE.format(address=f"{address.page(run_id)}#{token}")
    write_whole(files.log_in_page, page.encode())
    return webbrowser.open(files.log_in_page.as_uri())
