"""``credentials``: a tenant's cloud credentials. Secrets are read from a file or standard input, and never shown."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from services.cli import options
from services.cli.command import Cli, LimitOption, YesOption, command, group
from services.cli.failures import Failure
from services.cli.output import Column, moment, word

app = group("Store, check, delete a tenant's cloud credentials.")

CredentialArgument = Annotated[str, typer.Argument(metavar="CREDENTIAL_ID", help="The credential.")]
SourceOption = Annotated[
    list[str] | None,
    typer.Option("--source", metavar="NAME=VALUE", help="Where the data lie; once for each field, or one JSON file."),
]
_COLUMNS = [
    Column("credential", lambda each: each.credential_id),
    Column("provider", lambda each: each.provider),
    Column("name", lambda each: each.name),
    Column("status", lambda each: word(each, "status")),
    Column("kind", lambda each: each.kind),
    Column("known by", lambda each: each.display, fold=True),
    Column("version", lambda each: each.version, right=True),
    Column("validated", lambda each: moment(each, "last_validated_time")),
    Column("reason", lambda each: each.status_reason, fold=True),
]


def rows(credential: Any) -> list[tuple[str, Any]]:
    """A credential, field by field."""
    source = ", ".join(f"{name}={value}" for name, value in sorted(credential.source.items()))
    return [
        *((column.head, column.value(credential)) for column in _COLUMNS),
        ("source", source),
        ("external id", credential.external_id),
        ("stored", moment(credential, "create_time")),
        ("changed", moment(credential, "update_time")),
        ("expires", moment(credential, "expire_time")),
    ]


@command(
    app,
    "add",
    examples=[
        "convergence credentials add gcp --file key.json",
        "convergence credentials add aws --file aws.json --source bucket=exports --source prefix=cur/daily",
        "vault read -format=json secret/azure | convergence credentials add azure --name emea --file -",
    ],
)
def add(
    cli: Cli,
    provider: Annotated[str, typer.Argument(metavar="PROVIDER", help="gcp, aws or azure.")],
    file: Annotated[
        str, typer.Option("--file", "-f", metavar="FILE", help="The secret as JSON (`-`: standard input).")
    ],
    source: SourceOption = None,
    name: Annotated[str, typer.Option("--name", help="Where a tenant has several of one provider.")] = "",
) -> None:
    """Store a credential, or a new version of it.

    The provider is asked first whether it works.

    The file holds what the provider gave you: for gcp the service-account key as it is downloaded; for aws
    access_key_id and secret_access_key, or role_arn; for azure client_id, client_secret and azure_tenant_id, or
    sas_token. A file of {"provider", "credentials", "source", "name"}, as the API takes it, is right too.
    """
    body = options.read_object(file)
    whole = body if isinstance(body.get("credentials"), dict) else {"credentials": body}
    made = cli.api.call(
        "credential.CreateCredential",
        tenant_id=cli.tenant,
        provider=provider,
        credentials=whole["credentials"],
        source=options.source(source) or whole.get("source"),
        name=name or whole.get("name"),
    )
    if cli.print.as_json:
        cli.print.json(made)
        return
    cli.print.details(
        [
            ("credential", made.credential_id),
            ("provider", made.provider),
            ("name", made.name),
            ("was", word(made, "action")),
            ("status", word(made, "status")),
            ("reason", made.status_reason),
            ("tables", word(made, "dataset_status")),
            ("external id", made.external_id),
        ]
    )
    if made.external_id:
        cli.print.say("Let the role's trust policy ask for this external id, then `convergence credentials validate`.")


@command(app, "list", examples=["convergence credentials list", "convergence credentials list --provider gcp -o json"])
def list_(
    cli: Cli,
    provider: Annotated[str, typer.Option("--provider", help="Only this provider's.")] = "",
    limit: LimitOption = 100,
) -> None:
    """List the credentials; never their secrets."""
    cli.list(
        "credential.ListCredentials",
        "credentials",
        _COLUMNS,
        empty="No credentials yet: `convergence credentials add` stores one.",
        limit=limit,
        tenant_id=cli.tenant,
        provider=provider or None,
    )


@command(app, "get", examples=["convergence credentials get 3f6a…"])
def get(cli: Cli, credential_id: CredentialArgument) -> None:
    """Show what is known of a credential, but for its secret."""
    cli.show(cli.api.call("credential.GetCredential", tenant_id=cli.tenant, credential_id=credential_id), rows)


@command(app, "validate", examples=["convergence credentials validate 3f6a…"])
def validate(cli: Cli, credential_id: CredentialArgument) -> None:
    """Ask the provider whether a credential works.

    Exits 1 if it does not.
    """
    found = cli.api.call("credential.ValidateCredential", tenant_id=cli.tenant, credential_id=credential_id)
    cli.show(found, rows)
    if word(found, "status") == "INVALID":
        raise Failure(
            found.status_reason or "The provider refused it.", advice="Store a new one: `convergence credentials add`."
        )


@command(
    app,
    "set-source",
    examples=[
        "convergence credentials set-source 3f6a… --source project_id=acme-billing --source dataset_id=export",
        "convergence credentials set-source 3f6a… --source source.json",
    ],
)
def set_source(cli: Cli, credential_id: CredentialArgument, source: SourceOption = None) -> None:
    """Say where the data lie.

    This replaces what was said before; the secret stays.
    """
    given = options.source(source)
    if not given:
        raise typer.BadParameter("say where the data lie: --source NAME=VALUE")
    changed = cli.api.call(
        "credential.UpdateCredential", tenant_id=cli.tenant, credential_id=credential_id, source=given
    )
    cli.show(changed, rows)


@command(app, "delete", examples=["convergence credentials delete 3f6a… --yes"])
def delete(cli: Cli, credential_id: CredentialArgument, yes: YesOption = False) -> None:
    """Revoke a credential and destroy its secret."""
    cli.confirm(f"Destroy credential {credential_id}?", yes=yes)
    cli.show(cli.api.call("credential.DeleteCredential", tenant_id=cli.tenant, credential_id=credential_id), rows)
