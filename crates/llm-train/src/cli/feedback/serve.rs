//! The command `feedback serve`: the page on which people rank answers.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use clap::Args;
use llm_feedback::store::Store;
use llm_serve::feedback::{FeedbackOptions, FeedbackServer};

use super::policy::PolicyOptions;
use crate::Error;

/// Options of the pages for people.
#[derive(Debug, Args)]
pub(super) struct Listen {
    /// Address to listen on; every annotator needs a token if it is not of this machine only
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    host: IpAddr,
    /// Port to listen on; 0: any free one
    #[arg(long, default_value_t = 8090)]
    port: u16,
    /// Name of this machine that browsers and proxies may use for a loopback address, besides localhost (repeatable)
    #[arg(long, value_name = "NAME")]
    allow_host: Vec<String>,
    /// Ask for tokens on a loopback address too, such as after a proxy
    #[arg(long)]
    tokens: bool,
    /// Give this annotator a token and print the link with it (repeatable)
    #[arg(long, value_name = "NAME")]
    annotator: Vec<String>,
    /// Annotator who can see the page /report, which names the models (repeatable); without tokens everybody can
    #[arg(long, value_name = "NAME")]
    admin: Vec<String>,
    /// Give this annotator a new token in place of a lost one (repeatable)
    #[arg(long, value_name = "NAME")]
    renew_token: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  llm-train feedback serve --db votes.sqlite\n  \
    llm-train feedback serve --db votes.sqlite --overlap 2 --grades --guideline guideline.txt\n  \
    llm-train feedback serve --db votes.sqlite --host 0.0.0.0 --annotator anna --annotator ben\n\n\
    It prints where it listens. Ctrl-C ends it; nothing that was submitted is lost, however it ends.")]
pub(in crate::cli) struct Serve {
    /// Database with the items, from `collect` or `import`
    #[arg(long, value_name = "FILE")]
    db: PathBuf,
    #[command(flatten)]
    listen: Listen,
    #[command(flatten)]
    policy: PolicyOptions,
    /// Ask for grades of each answer too: accuracy, helpfulness, safety
    #[arg(long)]
    grades: bool,
}

/// Runs the command.
pub(super) fn serve(args: &Serve) -> Result<String, Error> {
    let store = Store::open_existing(&args.db)?;
    let policy = args.policy.policy()?;
    let options = FeedbackOptions { policy, grades: args.grades, ..FeedbackOptions::default() };
    let items = store.item_count()?;
    if items == 0 {
        return Err(Error::BadRequest(format!("{}: has no items; add some by collect or import", args.db.display())));
    }
    let what = format!("{items} items of {}", args.db.display());
    args.listen.run(&store, options, &what, FeedbackServer::start)
}

impl Listen {
    /// Starts a server, prints where it listens, and waits for Ctrl-C.
    pub(super) fn run(
        &self,
        store: &Store,
        mut options: FeedbackOptions,
        what: &str,
        start: impl FnOnce(Store, SocketAddr, FeedbackOptions) -> Result<FeedbackServer, llm_serve::ServeError>,
    ) -> Result<String, Error> {
        options.hosts.clone_from(&self.allow_host);
        options.admins.clone_from(&self.admin);
        options.tokens = self.tokens || !self.host.is_loopback();
        let makes_tokens = !self.annotator.is_empty() || !self.renew_token.is_empty();
        if makes_tokens && !options.tokens {
            let problem =
                "--annotator and --renew-token make tokens, which a loopback address does not ask for; add --tokens";
            return Err(Error::BadRequest(problem.to_owned()));
        }
        let known = store.annotators()?;
        let has_token = |name: &String| known.iter().any(|annotator| annotator.name == *name && annotator.has_token);
        if let Some(name) = self.annotator.iter().find(|name| has_token(name)) {
            return Err(Error::BadRequest(format!("--annotator {name}: has a token; if it is lost use --renew-token")));
        }
        if options.tokens && !makes_tokens && !known.iter().any(|annotator| annotator.has_token) {
            let problem = "nobody has a token, so nobody could enter; add --annotator NAME for each annotator";
            return Err(Error::BadRequest(problem.to_owned()));
        }
        let address = SocketAddr::new(self.host, self.port);
        let server = start(store.clone(), address, options).map_err(|error| Error::BadRequest(error.to_string()))?;
        // The address 0.0.0.0 is for listening only.
        let address = server.address();
        let shown = match address.ip().is_unspecified() {
            true => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), address.port()),
            false => address,
        };
        let mut text = format!("{what}: http://{shown}/\n");
        let new = self.annotator.iter().map(|name| Ok((name, store.add_annotator(name)?.1)));
        let renewed = self.renew_token.iter().map(|name| Ok((name, store.renew_token(name)?)));
        for link in new.chain(renewed) {
            let (name, token) = link.map_err(|error: llm_feedback::Error| Error::from(error))?;
            text += &format!("{name}: http://{shown}/#token={token}\n");
        }
        let stop = llm_cli::stop_on_interrupt("waiting for the running requests");
        llm_cli::print(&text).map_err(|failure| Error::Internal(failure.to_string()))?;
        while !stop.load(SeqCst) {
            std::thread::sleep(Duration::from_millis(50));
        }
        server.shutdown(Duration::from_secs(5));
        Ok(format!("{what}: {} judgements\n", store.current()?.len()))
    }
}
