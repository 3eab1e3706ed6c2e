//! The clients that are compared, each used as its own documentation recommends: the same five
//! operations, nothing wrapped around them.

use std::fmt::Display;
use std::time::Duration;

use bytes::Bytes;
use fred::interfaces::{ClientLike, KeysInterface};
use glide::PipelineExt;
use redis::AsyncCommands;
use redis::aio::{
    ConnectionLike, ConnectionManager, ConnectionManagerConfig, MultiplexedConnection,
};
use redis::cluster_async::ClusterConnection;
use redis_tower::commands::{Get, MGet, Set};
use rustis::client::BatchPreparedCommand;
use rustis::commands::StringCommands;
use rustis::resp::{BulkString, RefBulkString};

/// Connections of a pool: what bb8 and deadpool would be given on a small machine.
const POOL: usize = 16;
/// In the outage half, each client that can be told so gives a call up after so long.
const PATIENCE: Duration = Duration::from_secs(1);

/// One client at work. Operations return how many bytes, or values, came, so that nothing is
/// optimised away and wrong answers are noticed.
pub trait Subject: Clone + Send + Sync + 'static {
    type Error: Display + Send;
    fn get(&self, key: &str) -> impl Future<Output = Result<usize, Self::Error>> + Send;
    fn set(
        &self,
        key: &str,
        value: &'static [u8],
    ) -> impl Future<Output = Result<usize, Self::Error>> + Send;
    fn mget(&self, keys: &[String]) -> impl Future<Output = Result<usize, Self::Error>> + Send;
    /// GETs in one pipeline.
    fn pipeline(&self, keys: &[String]) -> impl Future<Output = Result<usize, Self::Error>> + Send;
}

/// Which client, and how it is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Native,
    Traits,
    Multiplexed,
    MultiplexedWide,
    Manager,
    Fred,
    Rustis,
    Bb8,
    Deadpool,
    Tower,
    RedisRsCluster,
    Glide,
}

impl Kind {
    /// Those that speak to a cluster.
    pub const OF_A_CLUSTER: [Self; 6] = [
        Self::Native,
        Self::Traits,
        Self::RedisRsCluster,
        Self::Fred,
        Self::Rustis,
        Self::Glide,
    ];

    /// Those that speak to one server.
    pub const ALL: [Self; 10] = [
        Self::Native,
        Self::Traits,
        Self::Multiplexed,
        Self::MultiplexedWide,
        Self::Manager,
        Self::Fred,
        Self::Rustis,
        Self::Bb8,
        Self::Deadpool,
        Self::Tower,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "steadfast",
            Self::Traits => "steadfast, redis-rs traits",
            Self::Multiplexed => "redis-rs multiplexed",
            Self::MultiplexedWide => "redis-rs multiplexed, buffer 1024",
            Self::Manager => "redis-rs ConnectionManager",
            Self::Fred => "fred",
            Self::Rustis => "rustis",
            Self::Bb8 => "bb8-redis, 16",
            Self::Deadpool => "deadpool-redis, 16",
            Self::Tower => "redis-tower",
            Self::RedisRsCluster => "redis-rs ClusterConnection",
            Self::Glide => "valkey-glide",
        }
    }

    pub fn is_ours(self) -> bool {
        matches!(self, Self::Native | Self::Traits)
    }
}

/// As it comes, or told to give up after a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setup {
    AsItComes,
    Impatient,
}

/// A client that is connected.
#[derive(Clone)]
pub enum Connected {
    Native(Native),
    Traits(RedisRs<steadfast::Client>),
    Multiplexed(RedisRs<MultiplexedConnection>),
    Manager(RedisRs<ConnectionManager>),
    Fred(Fred),
    Rustis(Rustis),
    Bb8(Bb8),
    Deadpool(Deadpool),
    Tower(Tower),
    RedisRsCluster(RedisRs<ClusterConnection>),
    Glide(Glide),
}

/// Calls generic code with the client inside, so that each is compiled for itself.
#[macro_export]
macro_rules! with_subject {
    ($connected:expr, $subject:ident => $call:expr) => {
        match $connected {
            $crate::subjects::Connected::Native($subject) => $call,
            $crate::subjects::Connected::Traits($subject) => $call,
            $crate::subjects::Connected::Multiplexed($subject) => $call,
            $crate::subjects::Connected::Manager($subject) => $call,
            $crate::subjects::Connected::Fred($subject) => $call,
            $crate::subjects::Connected::Rustis($subject) => $call,
            $crate::subjects::Connected::Bb8($subject) => $call,
            $crate::subjects::Connected::Deadpool($subject) => $call,
            $crate::subjects::Connected::Tower($subject) => $call,
            $crate::subjects::Connected::RedisRsCluster($subject) => $call,
            $crate::subjects::Connected::Glide($subject) => $call,
        }
    };
}

pub type SetUpError = Box<dyn std::error::Error + Send + Sync>;

impl Kind {
    pub async fn connect(self, url: &str, setup: Setup) -> Result<Connected, SetUpError> {
        let impatient = setup == Setup::Impatient;
        Ok(match self {
            Self::Native => Connected::Native(Native(ours(url).await?)),
            Self::Traits => Connected::Traits(RedisRs(ours(url).await?)),
            Self::Multiplexed | Self::MultiplexedWide => {
                let mut config = redis::AsyncConnectionConfig::new();
                if self == Self::MultiplexedWide {
                    config = config.set_pipeline_buffer_size(1024);
                }
                if impatient {
                    config = config.set_response_timeout(Some(PATIENCE));
                }
                let client = redis::Client::open(url)?;
                Connected::Multiplexed(RedisRs(
                    client
                        .get_multiplexed_async_connection_with_config(&config)
                        .await?,
                ))
            }
            Self::Manager => {
                let mut config = ConnectionManagerConfig::new();
                if impatient {
                    config = config
                        .set_response_timeout(Some(PATIENCE))
                        .set_connection_timeout(Some(PATIENCE));
                }
                let client = redis::Client::open(url)?;
                Connected::Manager(RedisRs(
                    ConnectionManager::new_with_config(client, config).await?,
                ))
            }
            Self::Fred => {
                let mut builder =
                    fred::prelude::Builder::from_config(fred::prelude::Config::from_url(url)?);
                // Without a policy it does not reconnect at all.
                builder.set_policy(fred::prelude::ReconnectPolicy::new_exponential(
                    0, 20, 250, 2,
                ));
                if impatient {
                    builder.with_performance_config(|config| {
                        config.default_command_timeout = PATIENCE
                    });
                }
                let client = builder.build()?;
                client.init().await?;
                Connected::Fred(Fred(client))
            }
            Self::Rustis => {
                let mut config: rustis::client::Config = url.parse()?;
                if impatient {
                    config.command_timeout = PATIENCE;
                }
                Connected::Rustis(Rustis(rustis::client::Client::connect(config).await?))
            }
            Self::Bb8 => {
                let manager = bb8_redis::RedisConnectionManager::new(url)?;
                let mut builder = bb8::Pool::builder()
                    .max_size(POOL as u32)
                    .min_idle(POOL as u32);
                if impatient {
                    builder = builder.connection_timeout(PATIENCE);
                }
                Connected::Bb8(Bb8(builder.build(manager).await?))
            }
            Self::Deadpool => {
                let mut builder = deadpool_redis::Config::from_url(url)
                    .builder()?
                    .max_size(POOL);
                if impatient {
                    let limit = Some(PATIENCE);
                    builder = builder
                        .wait_timeout(limit)
                        .create_timeout(limit)
                        .recycle_timeout(limit);
                }
                Connected::Deadpool(Deadpool(
                    builder.runtime(deadpool_redis::Runtime::Tokio1).build()?,
                ))
            }
            Self::Tower => {
                Connected::Tower(Tower(redis_tower::MultiplexedClient::connect_url_lazy(url)))
            }
            Self::RedisRsCluster | Self::Glide => {
                return Err(format!("{} is compared on a cluster", self.name()).into());
            }
        })
    }

    /// Connects to the cluster whose nodes listen at these `host:port`.
    pub async fn connect_to_cluster(self, nodes: &[String]) -> Result<Connected, SetUpError> {
        let url = format!("redis-cluster://{}", nodes.join(","));
        Ok(match self {
            Self::Native => Connected::Native(Native(ours(&url).await?)),
            Self::Traits => Connected::Traits(RedisRs(ours(&url).await?)),
            Self::RedisRsCluster => {
                let nodes = nodes.iter().map(|node| format!("redis://{node}"));
                let client = redis::cluster::ClusterClient::new(nodes)?;
                Connected::RedisRsCluster(RedisRs(client.get_async_connection().await?))
            }
            Self::Fred => {
                let (first, others) = nodes.split_first().ok_or("a cluster without nodes")?;
                let others: Vec<_> = others.iter().map(|node| format!("node={node}")).collect();
                let url = format!("redis-cluster://{first}?{}", others.join("&"));
                let config = fred::prelude::Config::from_url(&url)?;
                let client = fred::prelude::Builder::from_config(config).build()?;
                client.init().await?;
                Connected::Fred(Fred(client))
            }
            Self::Rustis => {
                let config: rustis::client::Config = url.parse()?;
                Connected::Rustis(Rustis(rustis::client::Client::connect(config).await?))
            }
            Self::Glide => {
                let mut addresses = Vec::new();
                for node in nodes {
                    let (host, port) = node.rsplit_once(':').ok_or("a node without a port")?;
                    addresses.push(glide::NodeAddress::new(host, port.parse()?));
                }
                let config = glide::GlideClusterClientConfiguration::new(addresses);
                Connected::Glide(Glide(glide::GlideClusterClient::connect(config).await?))
            }
            other => return Err(format!("{} does not know clusters", other.name()).into()),
        })
    }
}

async fn ours(url: &str) -> Result<steadfast::Client, SetUpError> {
    Ok(steadfast::Client::builder(url)?.connect().await?)
}

/// By its own API.
#[derive(Clone)]
pub struct Native(steadfast::Client);

impl Subject for Native {
    type Error = steadfast::Error;

    async fn get(&self, key: &str) -> Result<usize, Self::Error> {
        Ok(size(&self.0.send(redis::cmd("GET").arg(key)).await?))
    }

    async fn set(&self, key: &str, value: &'static [u8]) -> Result<usize, Self::Error> {
        self.0.send(redis::cmd("SET").arg(key).arg(value)).await?;
        Ok(value.len())
    }

    async fn mget(&self, keys: &[String]) -> Result<usize, Self::Error> {
        match self.0.send(redis::cmd("MGET").arg(keys)).await? {
            redis::Value::Array(values) => {
                Ok(values.iter().filter(|value| size(value) > 0).count())
            }
            _ => Ok(0),
        }
    }

    async fn pipeline(&self, keys: &[String]) -> Result<usize, Self::Error> {
        let mut pipeline = redis::Pipeline::with_capacity(keys.len());
        for key in keys {
            pipeline.get(key);
        }
        let values = self.0.send_pipeline(&pipeline).await?;
        Ok(values.iter().filter(|value| size(value) > 0).count())
    }
}

fn size(value: &redis::Value) -> usize {
    match value {
        redis::Value::BulkString(bytes) => bytes.len(),
        _ => 0,
    }
}

/// Anything that speaks through the traits of redis-rs.
#[derive(Clone)]
pub struct RedisRs<C>(C);

impl<C: ConnectionLike + Clone + Send + Sync + 'static> Subject for RedisRs<C> {
    type Error = redis::RedisError;

    async fn get(&self, key: &str) -> Result<usize, Self::Error> {
        redis_get(&mut self.0.clone(), key).await
    }

    async fn set(&self, key: &str, value: &'static [u8]) -> Result<usize, Self::Error> {
        redis_set(&mut self.0.clone(), key, value).await
    }

    async fn mget(&self, keys: &[String]) -> Result<usize, Self::Error> {
        redis_mget(&mut self.0.clone(), keys).await
    }

    async fn pipeline(&self, keys: &[String]) -> Result<usize, Self::Error> {
        redis_pipeline(&mut self.0.clone(), keys).await
    }
}

async fn redis_get(
    connection: &mut (impl ConnectionLike + Send + Sync),
    key: &str,
) -> redis::RedisResult<usize> {
    let value: Vec<u8> = connection.get(key).await?;
    Ok(value.len())
}

async fn redis_set(
    connection: &mut (impl ConnectionLike + Send + Sync),
    key: &str,
    value: &'static [u8],
) -> redis::RedisResult<usize> {
    let () = connection.set(key, value).await?;
    Ok(value.len())
}

async fn redis_mget(
    connection: &mut (impl ConnectionLike + Send + Sync),
    keys: &[String],
) -> redis::RedisResult<usize> {
    let values: Vec<Vec<u8>> = connection.mget(keys).await?;
    Ok(values.len())
}

async fn redis_pipeline(
    connection: &mut (impl ConnectionLike + Send + Sync),
    keys: &[String],
) -> redis::RedisResult<usize> {
    let mut pipeline = redis::Pipeline::with_capacity(keys.len());
    for key in keys {
        pipeline.get(key);
    }
    let values: Vec<Vec<u8>> = pipeline.query_async(connection).await?;
    Ok(values.len())
}

#[derive(Clone)]
pub struct Bb8(bb8::Pool<bb8_redis::RedisConnectionManager>);

impl Subject for Bb8 {
    type Error = bb8::RunError<redis::RedisError>;

    async fn get(&self, key: &str) -> Result<usize, Self::Error> {
        Ok(redis_get(&mut *self.0.get().await?, key).await?)
    }

    async fn set(&self, key: &str, value: &'static [u8]) -> Result<usize, Self::Error> {
        Ok(redis_set(&mut *self.0.get().await?, key, value).await?)
    }

    async fn mget(&self, keys: &[String]) -> Result<usize, Self::Error> {
        Ok(redis_mget(&mut *self.0.get().await?, keys).await?)
    }

    async fn pipeline(&self, keys: &[String]) -> Result<usize, Self::Error> {
        Ok(redis_pipeline(&mut *self.0.get().await?, keys).await?)
    }
}

#[derive(Clone)]
pub struct Deadpool(deadpool_redis::Pool);

impl Subject for Deadpool {
    type Error = SetUpError;

    async fn get(&self, key: &str) -> Result<usize, Self::Error> {
        Ok(redis_get(&mut self.0.get().await?, key).await?)
    }

    async fn set(&self, key: &str, value: &'static [u8]) -> Result<usize, Self::Error> {
        Ok(redis_set(&mut self.0.get().await?, key, value).await?)
    }

    async fn mget(&self, keys: &[String]) -> Result<usize, Self::Error> {
        Ok(redis_mget(&mut self.0.get().await?, keys).await?)
    }

    async fn pipeline(&self, keys: &[String]) -> Result<usize, Self::Error> {
        Ok(redis_pipeline(&mut self.0.get().await?, keys).await?)
    }
}

#[derive(Clone)]
pub struct Fred(fred::prelude::Client);

impl Subject for Fred {
    type Error = fred::error::Error;

    async fn get(&self, key: &str) -> Result<usize, Self::Error> {
        let value: Bytes = self.0.get(key).await?;
        Ok(value.len())
    }

    async fn set(&self, key: &str, value: &'static [u8]) -> Result<usize, Self::Error> {
        let () = self
            .0
            .set(key, Bytes::from_static(value), None, None, false)
            .await?;
        Ok(value.len())
    }

    async fn mget(&self, keys: &[String]) -> Result<usize, Self::Error> {
        let values: Vec<Bytes> = self.0.mget(keys.iter().collect::<Vec<_>>()).await?;
        Ok(values.len())
    }

    async fn pipeline(&self, keys: &[String]) -> Result<usize, Self::Error> {
        let pipeline = self.0.pipeline();
        for key in keys {
            let () = pipeline.get(key).await?;
        }
        let values: Vec<Bytes> = pipeline.all().await?;
        Ok(values.len())
    }
}

#[derive(Clone)]
pub struct Rustis(rustis::client::Client);

impl Subject for Rustis {
    type Error = rustis::Error;

    async fn get(&self, key: &str) -> Result<usize, Self::Error> {
        let value: BulkString = StringCommands::get(&self.0, key).await?;
        Ok(value.len())
    }

    async fn set(&self, key: &str, value: &'static [u8]) -> Result<usize, Self::Error> {
        StringCommands::set(&self.0, key, RefBulkString::from(value)).await?;
        Ok(value.len())
    }

    async fn mget(&self, keys: &[String]) -> Result<usize, Self::Error> {
        let values: Vec<BulkString> = StringCommands::mget(&self.0, keys).await?;
        Ok(values.len())
    }

    async fn pipeline(&self, keys: &[String]) -> Result<usize, Self::Error> {
        let mut pipeline = self.0.create_pipeline();
        for key in keys {
            StringCommands::get::<()>(&mut pipeline, key).queue();
        }
        let values: Vec<BulkString> = pipeline.execute().await?;
        Ok(values.len())
    }
}

#[derive(Clone)]
pub struct Tower(redis_tower::MultiplexedClient);

impl Subject for Tower {
    type Error = redis_tower::RedisError;

    async fn get(&self, key: &str) -> Result<usize, Self::Error> {
        Ok(self
            .0
            .execute(Get::new(key))
            .await?
            .map_or(0, |value| value.len()))
    }

    async fn set(&self, key: &str, value: &'static [u8]) -> Result<usize, Self::Error> {
        self.0
            .execute(Set::new(key, Bytes::from_static(value)))
            .await?;
        Ok(value.len())
    }

    async fn mget(&self, keys: &[String]) -> Result<usize, Self::Error> {
        let values = self.0.execute(MGet::new(keys)).await?;
        Ok(values.into_iter().flatten().count())
    }

    async fn pipeline(&self, keys: &[String]) -> Result<usize, Self::Error> {
        let mut pipeline = redis_tower::Pipeline::new();
        for key in keys {
            pipeline = pipeline.push(Get::new(key));
        }
        Ok(pipeline.execute(&mut self.0.clone()).await?.len())
    }
}

#[derive(Clone)]
pub struct Glide(glide::GlideClusterClient);

impl Subject for Glide {
    type Error = glide::GlideError;

    async fn get(&self, key: &str) -> Result<usize, Self::Error> {
        let value: Vec<u8> = glide::AsyncCommands::get(&self.0, key).await?;
        Ok(value.len())
    }

    async fn set(&self, key: &str, value: &'static [u8]) -> Result<usize, Self::Error> {
        let () = glide::AsyncCommands::set(&self.0, key, value).await?;
        Ok(value.len())
    }

    async fn mget(&self, keys: &[String]) -> Result<usize, Self::Error> {
        let values: Vec<Vec<u8>> = glide::AsyncCommands::mget(&self.0, keys).await?;
        Ok(values.len())
    }

    async fn pipeline(&self, keys: &[String]) -> Result<usize, Self::Error> {
        let mut pipeline = glide::pipe();
        for key in keys {
            pipeline.cmd("GET").arg(key);
        }
        let values: Vec<Vec<u8>> = pipeline.query_async(&self.0).await?;
        Ok(values.len())
    }
}
