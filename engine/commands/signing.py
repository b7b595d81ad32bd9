"""The commands that sign results and verify them."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..text import counted, escaped
from .options import need_extra

if TYPE_CHECKING:
    from ..signing import Signed

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("results", type=PATH, metavar="RESULTS")
@click.option("--key", type=PATH, required=True, metavar="FILE", help="Private key: Ed25519, in PEM.")
@click.option("--out", type=PATH, metavar="FILE", help="The signature; default: RESULTS.sig.")
def sign(results: Path, key: Path, out: Path | None) -> None:
    """Sign finished RESULTS: every row, the model's hash and the settings.

    Writes RESULTS.sig, 8 bytes a row, and leaves RESULTS alone. A signature holds for the values, not for the
    bytes of the file: a Parquet file that another program wrote with the same values is as good. Needs the
    sign extra.

    \b
    openssl genpkey -algorithm ed25519 -out key.pem
    openssl pkey -in key.pem -pubout -out public.pem
    gbad-batch sign results.parquet --key key.pem
    """
    need_extra("sign", "cryptography")
    from ..signing import sign as sign_results
    from ..signing.keys import others_may_read
    from .console import tell

    def password() -> str:
        return click.prompt("Password of the key", hide_input=True, err=True)

    signed = sign_results(results, key, out, password)
    if others_may_read(key):
        tell(f"WARNING: other users may read the private key: chmod 600 {key}")
    click.echo(f"{_text(signed)}\nSignature: {escaped(str(signed.path))}")


@click.command()
@click.argument("results", type=PATH, metavar="RESULTS")
@click.option("--key", type=PATH, required=True, metavar="PUBLIC", help="Public key: Ed25519, in PEM.")
@click.option("--signature", type=PATH, metavar="FILE", help="The signature; default: RESULTS.sig.")
def verify(results: Path, key: Path, signature: Path | None) -> None:
    """Verify that RESULTS are as the holder of a key signed them.

    If not, one sentence names what has changed: the rows, a column, or an entry of the footer, such as the
    model. Needs the sign extra.

    \b
    gbad-batch verify results.parquet --key public.pem

    \b
    Exit code: 0 as signed; 2 not signed, changed, or signed with another key.
    """
    need_extra("sign", "cryptography")
    from ..signing import verify as verify_results

    click.echo(f"As signed: {_text(verify_results(results, key, signature))}")


def _text(signed: "Signed") -> str:
    manifest = signed.manifest
    bundle, digest = (str(manifest.footer.get(name)) for name in ("bundle", "bundle_hash"))
    when = f"{manifest.signed} on {manifest.host} with the key {manifest.key[:16]}"
    return escaped(f"{counted(manifest.rows, 'row')}, model {bundle} ({digest[:12]}), signed {when}")
