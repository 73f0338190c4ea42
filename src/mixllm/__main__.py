from mixllm.cli.main import main

main()
