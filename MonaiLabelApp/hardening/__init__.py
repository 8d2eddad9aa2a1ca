"""What stands between the network and MONAI Label: `replica-detection serve` runs `hardening.asgi:app`.

MONAI Label's own routes are not wrapped but written anew over its app object, so that nothing is open that is not
named here. docs/server-security.md lists each trap of the stock server with the test that shows it closed.
"""
