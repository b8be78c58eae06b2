"""Opens the UI with the password at hand.

The UI asks for "user:password" and keeps it in the browser's local storage. A page of ours among the UI's files
puts it there; it gets it behind the `#` of its address, which no server sees. The browser is sent to that address
by a local file that only its user can read, because a program's arguments are for all to see. It also puts away
the banner for the V2 pages, which tell their maker of each visit.
"""

from __future__ import annotations

import base64
import webbrowser

from slurm_ray_flow.blocks.files import write_whole
from slurm_ray_flow.blocks.server.address import ServerAddress
from slurm_ray_flow.blocks.server.files import ServerFiles, auth_string, server_files

LANDING = "srf-log-in.html"

_LANDING_PAGE = """<!doctype html><meta charset="utf-8"><title>slurm-ray-flow</title><script>
localStorage.setItem("prefect-password", location.hash.slice(1));
localStorage.setItem("prefect-v2-promo-dismissed", "true"); location.replace("/");
</script>
"""

_LOCAL_PAGE = """<!doctype html><meta charset="utf-8"><title>slurm-ray-flow</title><script>
location.replace("{address}");
</script>
"""


def write_landing_page(files: ServerFiles) -> None:
    """Puts our page among the UI's files, which Prefect writes when it starts."""
    folder = files.user_interface / "v1"
    if folder.is_dir():
        write_whole(folder / LANDING, _LANDING_PAGE.encode())


def open_ui(address: ServerAddress) -> bool:
    """Opens the UI in the user's browser, logged in where the server is ours; False where there is no browser."""
    if not address.owned:
        return webbrowser.open(address.ui_url)
    files = server_files()
    token = base64.b64encode(auth_string(files).encode()).decode()
    page = _LOCAL_PAGE.format(address=f"{address.ui_url}/{LANDING}#{token}")
    write_whole(files.log_in_page, page.encode())
    return webbrowser.open(files.log_in_page.as_uri())
